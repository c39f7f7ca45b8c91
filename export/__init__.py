"""The workstation side: define, train, audit and export a defended split model. Needs the extra ``export``."""

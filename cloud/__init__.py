"""The server side: from a bundle's server folder to an Open Inference Protocol endpoint. Needs the extra ``cloud``."""

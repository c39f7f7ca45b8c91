"""Messages of the Open Inference Protocol, generated from the .proto file here."""

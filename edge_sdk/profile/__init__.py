"""What an encoder costs on this device, and where an end-to-end request's time goes."""

"""What is done to an encoder, one file per stage: Encoder in, the same Encoder out, one entry in its record."""

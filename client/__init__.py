"""What runs on a device: inference, sampling, and answers to the rounds."""

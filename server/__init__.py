"""The server: registry of models and generations, the lab, and the tuner that runs as a Flower ServerApp."""

"""The control plane: what a gateway measures, and who of its clients is slow."""

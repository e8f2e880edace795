"""The backend in plain PyTorch: in tiles, O(N) memory, on every device."""

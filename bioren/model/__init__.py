"""The fitted model, its file, and `RenormAutoencoder`."""

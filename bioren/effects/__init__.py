"""What differs between samples, and how it is taken away; arrays alone, no AnnData."""

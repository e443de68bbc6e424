"""The one door to AnnData: what is read of it is checked here, and what is written spelled here."""

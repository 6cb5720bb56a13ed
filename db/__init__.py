"""The database: campaigns, candidates and everything that was found out about them."""

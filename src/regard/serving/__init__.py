"""`regard serve`: trained models over HTTP; concurrent requests are computed in batches."""

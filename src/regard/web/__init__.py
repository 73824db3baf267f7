"""What regard's servers share: endpoints, refusals, limits, tokens, metrics, and the socket they listen on."""

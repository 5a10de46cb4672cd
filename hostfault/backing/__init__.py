"""How a host file becomes guest memory."""

"""How the harness speaks to machines and to what runs in them."""

"""Who is it, and what may it subscribe to and publish."""

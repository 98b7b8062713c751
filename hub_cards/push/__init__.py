"""Pushing to the Hub: what is sent, the proof that it works elsewhere, one commit. May import the cards."""

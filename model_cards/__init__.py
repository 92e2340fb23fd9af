"""Model cards: templates, facts, and the staging of the flat folder that the Hub serves."""

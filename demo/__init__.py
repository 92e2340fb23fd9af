"""The Gradio Space: its files are copied flat by `regionmed_clip.model_cards.space.stage_space`; none is imported."""

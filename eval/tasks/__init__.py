"""Evaluation tasks: each turns the embeddings of one data split into Result records."""

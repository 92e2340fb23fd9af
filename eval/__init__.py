"""Evaluation: metrics over arrays, tasks over a model and a data split, Result records, tables and pictures."""

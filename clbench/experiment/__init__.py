"""Descriptions of experiments: Spec -> plan -> Trial. No module of this package imports torch."""

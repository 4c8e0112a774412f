"""Hyper-parameter search: what is searched, how a trial is measured, the study, and its report."""

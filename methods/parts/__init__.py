"""Losses and modules of papers, for methods to compose. The engine knows none of them."""

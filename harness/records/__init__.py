"""Where records live, in a folder or under a URI, and what they say."""

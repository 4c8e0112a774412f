"""Work that is done many times, here or on a cluster: trials, searches, smoke runs, networks in use."""

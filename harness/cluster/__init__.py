"""Ray: sessions, workers, processes of a trial. Nothing else imports it, and the command line runs without it."""

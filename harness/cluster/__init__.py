"""Ray: sessions, workers, processes of a trial. Nothing else imports Ray, and everything runs without it."""

"""Several processes: which one this is, how they are started, meet, wait for one another, and what they send."""

"""Kept submissions: those accepted with `Prefer: respond-async`, which are stored in a file and worked on later.

`JobQueue` accepts them and runs them in order, `SqliteStore` keeps them across restarts, and `Worker` gives each one to
the receiver and turns its response into the result that the submitter polls for. Here such a submission is called a job.
"""

"""The life of a job: receive, decode, admit, call, classify, write, settle; start-up and sweeping."""

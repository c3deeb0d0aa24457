"""The process that Ray is in, seen as a process: its line, its session, its folder."""

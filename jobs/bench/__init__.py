"""`diffseg bench`: what is measured of the stages, the job and the method, and what it comes through."""

"""Derived tables: values of segments made from committed rows, kept beside them and joined onto them again."""

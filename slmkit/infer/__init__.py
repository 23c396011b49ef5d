"""Generation: text in, codes and waves out."""

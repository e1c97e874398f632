"""Images coming in: opening them safely, and numbered rows of folders, tars, parquet files and datasets."""

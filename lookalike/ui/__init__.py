"""The browser page, on Streamlit."""

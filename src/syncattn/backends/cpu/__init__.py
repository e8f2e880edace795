"""The backend of the native CPU kernel."""

"""The one way out to Girder: status, log and progress, inputs, outputs, ingested CLIs."""

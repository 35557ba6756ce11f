"""Export of students: Hugging Face folders, ONNX models, and model cards."""

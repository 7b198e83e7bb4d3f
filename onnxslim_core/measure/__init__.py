"""What a model costs and answers, measured with onnxruntime."""

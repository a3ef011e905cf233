"""What older documents call the questions to a server: `from insitu import ndif`.

ndif.status()
ndif.compare()
ndif.is_model_running("openai-community/gpt2")
ndif.register(my_package)
"""

from insitu.remote.client.info import compare, is_model_running, status, whoami
from insitu.remote.wire.origins import register

__all__ = ["compare", "is_model_running", "register", "status", "whoami"]

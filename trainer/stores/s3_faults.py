"""What a server's or a client's word for a failure means to the user: one remedy each."""

from __future__ import annotations

import os

CREDENTIALS_FROM = "COTRAIN_CREDENTIALS_FROM"
"""Says in a pod where its credentials come from, and what shows it."""
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or AWS_PROFILE, to credentials of this server"
_ACCESS = "let these credentials list, read, write and delete below this URI, or use others"
_ENDPOINT = "check that the server runs and that AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) names it"
_CERTIFICATE = "set AWS_CA_BUNDLE to the file of the authority that signed the server's certificate"
_REGION = "set AWS_DEFAULT_REGION to the region of the bucket"
_LATER = "try again later; AWS_MAX_ATTEMPTS raises the number of attempts"
_BUCKET = "create the bucket, or correct its name in the URI"

_REMEDIES = {
    "NoSuchBucket": _BUCKET, "InvalidBucketName": _BUCKET, "ParamValidationError": _BUCKET, "404": _BUCKET,
    "AccessDenied": _ACCESS, "AllAccessDisabled": _ACCESS, "403": _ACCESS, "Forbidden": _ACCESS, "MethodNotAllowed": _ACCESS,
    "InvalidAccessKeyId": _CREDENTIALS, "SignatureDoesNotMatch": _CREDENTIALS, "ExpiredToken": _CREDENTIALS, "InvalidToken": _CREDENTIALS,
    "TokenRefreshRequired": _CREDENTIALS, "InvalidClientTokenId": _CREDENTIALS, "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": _CREDENTIALS, "CredentialRetrievalError": _CREDENTIALS, "TokenRetrievalError": _CREDENTIALS,
    "UnauthorizedSSOTokenError": _CREDENTIALS, "SSOTokenLoadError": _CREDENTIALS, "MetadataRetrievalError": _CREDENTIALS,
    "ProfileNotFound": "set AWS_PROFILE to a profile of ~/.aws/config",
    "ConfigParseError": "correct ~/.aws/config, or the file AWS_CONFIG_FILE names",
    "EndpointConnectionError": _ENDPOINT, "ConnectTimeoutError": _ENDPOINT, "ConnectionClosedError": _ENDPOINT,
    "ReadTimeoutError": _ENDPOINT, "ConnectionError": _ENDPOINT, "HTTPClientError": _ENDPOINT, "ValueError": _ENDPOINT,
    "InvalidEndpointConfigurationError": _ENDPOINT,
    "ProxyConnectionError": "check HTTPS_PROXY and HTTP_PROXY, or add the server to NO_PROXY",
    "SSLError": _CERTIFICATE,
    "AuthorizationHeaderMalformed": _REGION, "PermanentRedirect": _REGION, "IllegalLocationConstraintException": _REGION,
    "InvalidRegionError": _REGION, "NoRegionError": _REGION, "301": _REGION, "400": _CREDENTIALS,
    "RequestTimeTooSkewed": "set the clock of this machine",
    "SlowDown": _LATER, "ServiceUnavailable": _LATER, "InternalError": _LATER, "RequestTimeout": _LATER, "500": _LATER, "503": _LATER,
    "ResponseStreamingError": _LATER, "IncompleteReadError": _LATER,
    "QuotaExceeded": "free some space there, or use another store", "EntityTooLarge": "use smaller files, or another store",
}  # fmt: skip


def remedy(*words: str) -> str:
    """What to do about a failure, by its error code, its HTTP status or the name of the client's error: the first that is known."""
    known = (_REMEDIES[word] for word in words if word in _REMEDIES)
    found = next(known, "run 'cotrain doctor' with this URI, and check the server's own log")
    source = os.environ.get(CREDENTIALS_FROM)
    return f"{found}; here they come from {source}" if source and found in (_CREDENTIALS, _ACCESS) else found

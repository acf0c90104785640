// What TlsContext holds, shared with its streams. For .cpp files of this folder only.
#pragma once

#include "pageserver/openssl_ptr.h"
#include "pageserver/tls.h"

namespace migrate {

struct TlsContext::Shared {
  TlsConfig config;
  BioMethodPtr bio_method;
  SslCtxPtr client, server;
};

/// What went wrong in a handshake or in the first read after it, as one sentence from this side's view.
struct HandshakeFailure {
  std::string object, remedy;
};
/// `verify_result`: SSL_get_verify_result; `reason`: ERR_GET_REASON of the first queued error; `peer_name`: from the
/// certificate, if one came.
HandshakeFailure explain_handshake(const TlsConfig& config, bool we_are_server, const std::string& peer,
                                   const std::string& peer_name, long verify_result, int reason);

/// First DNS name or IP address in the subjectAltName, else the common name; printable.
std::string certificate_name(X509* certificate);
/// Whether the certificate's subjectAltName holds `name` (DNS name, or IP address in text form).
bool certificate_has_name(X509* certificate, const std::string& name);

}  // namespace migrate

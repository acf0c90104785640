// Connections of --page-server, page-server and lazy dumps: TLS as other programs speak it (no greeting of ours), or
// plain.
#pragma once

#include <memory>

#include "migrate/cli/core_options.h"
#include "pageserver/stream.h"
#include "pageserver/tcp.h"
#include "pageserver/tls.h"

namespace migrate::cli {

/// Files that the options name, or ours; nullopt without --tls.
std::optional<TlsContext> page_tls(const CoreOptions& options);

/// Connects as the options say. Throws Refusal if that would be plain text to another machine without --insecure.
std::unique_ptr<Stream> connect_page_server(const CoreOptions& options);

/// The other end, over a socket that was accepted. `tls` may be nullptr.
std::unique_ptr<Stream> accept_page_client(Fd socket, const TlsContext* tls, bool insecure);

/// Throws Refusal if a listener would take plain text from other machines.
void refuse_plain_listener(const Listener& listener, bool tls, bool insecure);

/// Once the server has answered: throws Refusal if a plain connection inside this machine leads to another user's
/// process. (A connection that nobody has accepted yet is nobody's.)
void check_page_server(const Stream& stream, bool insecure);

}  // namespace migrate::cli

// Connections of --page-server and page-server: TLS as other programs speak it (no greeting of ours), or plain.
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

}  // namespace migrate::cli

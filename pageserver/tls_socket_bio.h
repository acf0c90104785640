// An OpenSSL BIO over a non-blocking socket that gathers several TLS records into one send(2), and never raises
// SIGPIPE.
#pragma once

#include <vector>

#include "pageserver/openssl_ptr.h"

namespace migrate {

/// The socket's send side: OpenSSL hands over one record of 16 KiB at a time; a system call for each would cost about
/// as much as encrypting it.
struct SocketBuffer {
  static constexpr size_t kSize = 64 << 10;  // measured: larger ones fall out of the cache
  int fd = -1;
  std::vector<char> out = std::vector<char>(kSize);
  size_t begin = 0, end = 0;  ///< of the bytes in `out` not yet sent
  int error = 0;              ///< errno of the last failed call
  bool eof = false;

  /// Sends what it can; false if something is left because the socket is full, or on an error (then `error` is set).
  bool flush();
};

BioMethodPtr make_socket_bio_method();
/// The BIO refers to `buffer`, which must outlive it.
BioPtr make_socket_bio(const BIO_METHOD* method, SocketBuffer& buffer);

}  // namespace migrate

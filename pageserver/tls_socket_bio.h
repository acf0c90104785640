// An OpenSSL BIO over a non-blocking socket that sends and receives several TLS records with one system call, and never
// raises SIGPIPE.
#pragma once

#include <vector>

#include "pageserver/openssl_ptr.h"

namespace migrate {

/// OpenSSL hands over one record of 16 KiB at a time, and takes one; a system call for each would cost about as much as
/// its encryption. (OpenSSL's own read-ahead moves all that it has read to the front of its buffer for each record.)
struct SocketBuffer {
  static constexpr size_t kHeader = 5;
  static constexpr size_t kRecord = kHeader + (16 << 10) + 1 + 16;  ///< TLS 1.3: header, contents, their type, tag
  // Measured: a larger `out` falls out of the cache; half of `in` costs a twentieth more.
  static constexpr size_t kOut = 4 * kRecord, kIn = 8 * kRecord;
  int fd = -1;
  std::vector<char> out = std::vector<char>(kOut), in = std::vector<char>(kIn);
  size_t begin = 0, end = 0;        ///< of the bytes in `out` not yet sent
  size_t in_begin = 0, in_end = 0;  ///< of the bytes in `in` not yet taken
  // Where OpenSSL copies the contents of records from and to: it has one place for each direction. 0: not known yet.
  uintptr_t sent_contents = 0, received_contents = 0;
  int error = 0;  ///< errno of the last failed call
  bool eof = false;

  /// Sends what it can; false if something is left because the socket is full, or on an error (then `error` is set).
  bool flush();
  enum class Received { bytes, nothing_yet, no_more };
  /// Fills `in`, which is empty, with what has come. No more comes at the end (`eof`) and after an error (`error`).
  Received receive();
};

BioMethodPtr make_socket_bio_method();
/// The BIO refers to `buffer`, which must outlive it.
BioPtr make_socket_bio(const BIO_METHOD* method, SocketBuffer& buffer);

}  // namespace migrate

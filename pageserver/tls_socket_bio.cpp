#include "pageserver/tls_socket_bio.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "pageserver/copying.h"

namespace migrate {
namespace {

SocketBuffer& buffer_of(BIO* bio) { return *static_cast<SocketBuffer*>(BIO_get_data(bio)); }

int bio_write(BIO* bio, const char* data, size_t size, size_t* written) {
  SocketBuffer& buffer = buffer_of(bio);
  BIO_clear_retry_flags(bio);
  if (buffer.end + size > buffer.out.size()) {
    if (!buffer.flush()) {
      if (buffer.error == 0) BIO_set_retry_write(bio);
      return 0;
    }
    size = std::min(size, buffer.out.size());
  }
  // Not of the small ones within handshakes, which come from elsewhere.
  if (size > kSmallCopy) buffer.sent_contents = reinterpret_cast<uintptr_t>(data) + SocketBuffer::kHeader;
  copy_bytes(buffer.out.data() + buffer.end, data, size);
  buffer.end += size;
  *written = size;
  return 1;
}

int bio_read(BIO* bio, char* out, size_t size, size_t* got) {
  SocketBuffer& buffer = buffer_of(bio);
  BIO_clear_retry_flags(bio);
  const bool empty = buffer.in_begin == buffer.in_end;
  if (const auto received = empty ? buffer.receive() : SocketBuffer::Received::bytes;
      received != SocketBuffer::Received::bytes) {
    if (received == SocketBuffer::Received::nothing_yet) BIO_set_retry_read(bio);
    return 0;
  }
  // The contents go behind the header, which is asked for by itself.
  if (size <= SocketBuffer::kHeader) buffer.received_contents = reinterpret_cast<uintptr_t>(out) + size;
  *got = std::min(size, buffer.in_end - buffer.in_begin);
  copy_bytes(out, buffer.in.data() + buffer.in_begin, *got);
  buffer.in_begin += *got;
  return 1;
}

long bio_ctrl(BIO* bio, int command, long, void*) {
  SocketBuffer& buffer = buffer_of(bio);
  switch (command) {
    case BIO_CTRL_FLUSH:
      // What the socket does not take now, the stream flushes later. To ask for a retry here would be taken for a
      // broken connection when a key is changed: OpenSSL's buffer between us and it then drops the flag
      // (bf_buff.c, 3.0).
      BIO_clear_retry_flags(bio);
      buffer.flush();
      return buffer.error == 0 ? 1 : 0;
    case BIO_CTRL_EOF:
      return buffer.eof ? 1 : 0;
    case BIO_CTRL_WPENDING:
      return static_cast<long>(buffer.end - buffer.begin);
    default:
      return 0;
  }
}

}  // namespace

bool SocketBuffer::flush() {
  while (begin < end) {
    const ssize_t n = ::send(fd, out.data() + begin, end - begin, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return false;
    if (n < 0) {
      error = errno;
      return false;
    }
    begin += static_cast<size_t>(n);
  }
  begin = end = 0;
  return true;
}

SocketBuffer::Received SocketBuffer::receive() {
  while (true) {
    const ssize_t n = ::recv(fd, in.data(), in.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return Received::nothing_yet;
    if (n < 0) error = errno;
    if (n == 0) eof = true;
    if (n <= 0) return Received::no_more;
    in_begin = 0;
    in_end = static_cast<size_t>(n);
    return Received::bytes;
  }
}

BioMethodPtr make_socket_bio_method() {
  BioMethodPtr method(BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "migrate socket"));
  openssl_check(method != nullptr && BIO_meth_set_write_ex(method.get(), bio_write) == 1 &&
                    BIO_meth_set_read_ex(method.get(), bio_read) == 1 && BIO_meth_set_ctrl(method.get(), bio_ctrl) == 1,
                "set up", "TLS");
  return method;
}

BioPtr make_socket_bio(const BIO_METHOD* method, SocketBuffer& buffer) {
  BioPtr bio(BIO_new(method));
  openssl_check(bio != nullptr, "set up", "TLS");
  BIO_set_data(bio.get(), &buffer);
  BIO_set_init(bio.get(), 1);
  return bio;
}

}  // namespace migrate

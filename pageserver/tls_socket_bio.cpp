#include "pageserver/tls_socket_bio.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

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
  std::memcpy(buffer.out.data() + buffer.end, data, size);
  buffer.end += size;
  *written = size;
  return 1;
}

int bio_read(BIO* bio, char* out, size_t size, size_t* got) {
  SocketBuffer& buffer = buffer_of(bio);
  BIO_clear_retry_flags(bio);
  while (true) {
    const ssize_t n = ::recv(buffer.fd, out, size, 0);
    if (n > 0) {
      *got = static_cast<size_t>(n);
      return 1;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      BIO_set_retry_read(bio);
    } else if (n < 0) {
      buffer.error = errno;
    } else {
      buffer.eof = true;
    }
    return 0;
  }
}

long bio_ctrl(BIO* bio, int command, long, void*) {
  SocketBuffer& buffer = buffer_of(bio);
  switch (command) {
    case BIO_CTRL_FLUSH:
      BIO_clear_retry_flags(bio);
      if (buffer.flush()) return 1;
      if (buffer.error == 0) BIO_set_retry_write(bio);
      return 0;
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

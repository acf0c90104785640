#include "pageserver/keys.h"

#include <arpa/inet.h>
#include <openssl/rand.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <ctime>

#include "core/base/fd.h"
#include "pageserver/openssl_ptr.h"

namespace migrate {
namespace {

struct Identity {
  X509Ptr certificate;
  PkeyPtr key;
};

BioPtr memory_bio() {
  BioPtr bio(BIO_new(BIO_s_mem()));
  openssl_check(bio != nullptr, "make", "PEM buffer");
  return bio;
}

std::string bio_text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<size_t>(size)};
}

/// Never replaces a file by accident: O_EXCL, after removing the old one if that is wished.
void write_new_file(const std::string& path, const std::string& text, mode_t mode, bool replace) {
  if (replace) ::unlink(path.c_str());
  const int raw = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
  if (raw < 0 && errno == EEXIST) throw Refusal(path + " exists", "remove it, choose another folder, or give --force");
  const Fd fd(check(raw, "create", path));
  write_full(fd.get(), as_bytes_of(text), path);
  check(::fsync(fd.get()), "sync", path);
}

void write_identity(const std::string& stem, const Identity& identity, bool replace,
                    std::vector<std::string>& written) {
  const BioPtr certificate = memory_bio();
  const BioPtr key = memory_bio();
  openssl_check(PEM_write_bio_X509(certificate.get(), identity.certificate.get()) == 1 &&
                    PEM_write_bio_PrivateKey(key.get(), identity.key.get(), nullptr, nullptr, 0, nullptr, nullptr) == 1,
                "write", stem);
  write_new_file(stem + ".key", bio_text(key.get()), 0600, replace);
  write_new_file(stem + ".crt", bio_text(certificate.get()), 0644, replace);
  written.push_back(stem + ".crt");
  written.push_back(stem + ".key");
}

X509Ptr read_certificate(const std::string& path) {
  check_readable(path, "certificate", "name a file that is there");
  const BioPtr bio(BIO_new_file(path.c_str(), "r"));
  X509Ptr certificate(bio ? PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr) : nullptr);
  if (!certificate) throw Refusal("cannot use the certificate " + path + ": " + openssl_error(), "give one in PEM");
  return certificate;
}

Identity read_ca(const std::string& dir) {
  constexpr const char* kRemedy = "make certificates where their CA was made, or a new CA in another folder";
  check_readable(dir + "/ca.crt", "CA's certificate", kRemedy);
  Identity ca{read_certificate(dir + "/ca.crt"), nullptr};
  const std::string path = dir + "/ca.key";
  check_readable(path, "CA's key", kRemedy);
  const BioPtr bio(BIO_new_file(path.c_str(), "r"));
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  ca.key.reset(bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr) : nullptr);
  if (!ca.key)
    throw Refusal("cannot use the CA's key " + path + ": " + openssl_error(), "give an unencrypted one in PEM");
  if (X509_check_private_key(ca.certificate.get(), ca.key.get()) != 1) {
    ERR_clear_error();
    throw Refusal(path + " does not belong to ca.crt", "choose another folder");
  }
  return ca;
}

PkeyPtr new_key() {
  PkeyPtr key(EVP_EC_gen("P-256"));
  openssl_check(key != nullptr, "make", "key");
  return key;
}

/// 127 random bits, as RFC 5280 wants serial numbers unique and positive.
std::string set_serial(X509* certificate) {
  BignumPtr number(BN_new());
  openssl_check(number != nullptr && BN_rand(number.get(), 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1 &&
                    BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr,
                "make", "serial number");
  char text[16];
  std::snprintf(text, sizeof text, "%08lx", static_cast<unsigned long>(BN_get_word(number.get()) & 0xffffffff));
  return text;
}

void add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const X509ExtensionPtr extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  openssl_check(extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1, "make", "certificate");
}

void set_name(X509* certificate, const std::string& name) {
  X509_NAME* subject = X509_get_subject_name(certificate);
  // A common name holds at most 64 characters; the name that counts is the subjectAltName.
  const std::string shortened = name.substr(0, 64);
  const auto* text = reinterpret_cast<const unsigned char*>(shortened.data());
  openssl_check(X509_NAME_add_entry_by_NID(subject, NID_commonName, MBSTRING_UTF8, text,
                                           static_cast<int>(shortened.size()), -1, 0) == 1,
                "make", "certificate");
}

void set_validity(X509* certificate, int64_t from, int64_t to) {
  const time_t now = std::time(nullptr);
  openssl_check(ASN1_TIME_set(X509_getm_notBefore(certificate), now + from) != nullptr &&
                    ASN1_TIME_set(X509_getm_notAfter(certificate), now + to) != nullptr,
                "set", "validity");
}

Identity make_ca(const KeyOptions& options) {
  Identity ca{X509Ptr(X509_new()), new_key()};
  X509* c = ca.certificate.get();
  openssl_check(c != nullptr && X509_set_version(c, X509_VERSION_3) == 1 && X509_set_pubkey(c, ca.key.get()) == 1,
                "make", "CA");
  set_name(c, "migrate CA " + set_serial(c));
  openssl_check(X509_set_issuer_name(c, X509_get_subject_name(c)) == 1, "make", "CA");
  set_validity(c, -300, options.ca_not_after);
  add_extension(c, c, NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
  add_extension(c, c, NID_key_usage, "critical,keyCertSign,cRLSign");
  add_extension(c, c, NID_subject_key_identifier, "hash");
  openssl_check(X509_sign(c, ca.key.get(), EVP_sha256()) > 0, "sign", "CA");
  return ca;
}

bool is_ip(const std::string& name) {
  unsigned char address[16];
  return ::inet_pton(AF_INET, name.c_str(), address) == 1 || ::inet_pton(AF_INET6, name.c_str(), address) == 1;
}

/// The name becomes a file name and a part of an extension's text: letters, digits and -._: only.
void check_name(const std::string& name) {
  const bool ok = !name.empty() && name.size() <= 253 && name.front() != '.' && name.front() != '-' && name != "ca" &&
                  name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:") ==
                      std::string::npos &&
                  (name.find(':') == std::string::npos || is_ip(name));
  if (!ok) throw Refusal("\"" + name + "\" cannot be a host's name", "give a DNS name or an IP address");
}

Identity make_host(const KeyOptions& options, const std::string& name, const Identity& ca) {
  Identity host{X509Ptr(X509_new()), new_key()};
  X509* c = host.certificate.get();
  openssl_check(c != nullptr && X509_set_version(c, X509_VERSION_3) == 1 && X509_set_pubkey(c, host.key.get()) == 1,
                "make", name);
  set_serial(c);
  set_name(c, name);
  openssl_check(X509_set_issuer_name(c, X509_get_subject_name(ca.certificate.get())) == 1, "make", name);
  set_validity(c, options.host_not_before, options.host_not_after);
  add_extension(c, ca.certificate.get(), NID_basic_constraints, "critical,CA:FALSE");
  add_extension(c, ca.certificate.get(), NID_key_usage, "critical,digitalSignature");
  add_extension(c, ca.certificate.get(), NID_ext_key_usage, "serverAuth,clientAuth");
  add_extension(c, ca.certificate.get(), NID_subject_alt_name, (is_ip(name) ? "IP:" : "DNS:") + name);
  add_extension(c, ca.certificate.get(), NID_subject_key_identifier, "hash");
  add_extension(c, ca.certificate.get(), NID_authority_key_identifier, "keyid:always");
  openssl_check(X509_sign(c, ca.key.get(), EVP_sha256()) > 0, "sign", name);
  return host;
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

}  // namespace

std::string dates_of(const std::string& path, int64_t soon) {
  const X509Ptr certificate = read_certificate(path);
  const ASN1_TIME* begin = X509_get0_notBefore(certificate.get());
  const ASN1_TIME* end = X509_get0_notAfter(certificate.get());
  time_t then = ::time(nullptr) + soon;
  const char* what = X509_cmp_current_time(begin) > 0 ? " is not valid before "
                     : X509_cmp_current_time(end) < 0 ? " has expired on "
                     : X509_cmp_time(end, &then) < 0  ? " expires on "
                                                      : nullptr;
  if (what == nullptr) return {};
  const BioPtr text = memory_bio();
  ASN1_TIME_print(text.get(), X509_cmp_current_time(begin) > 0 ? begin : end);
  return "the certificate " + path + what + bio_text(text.get());
}

void check_readable(const std::string& path, const char* what, const char* remedy, const char* if_forbidden) {
  if (::access(path.c_str(), R_OK) == 0) return;
  const int why = errno;
  throw Refusal(std::string("cannot read the ") + what + " " + path + ": " + std::strerror(why),
                why == EACCES && if_forbidden != nullptr ? if_forbidden : remedy);
}

std::vector<std::string> make_keys(const KeyOptions& options) {
  for (const std::string& name : options.names) check_name(name);
  if (::mkdir(options.dir.c_str(), 0700) != 0 && errno != EEXIST) throw Error("make folder", options.dir, errno);
  const std::string stem = options.dir + "/";
  for (const std::string& name : options.names)
    for (const char* suffix : {".crt", ".key"})
      if (!options.force && exists(stem + name + suffix))
        throw Refusal(stem + name + suffix + " exists", "remove it, choose another folder, or give --force");
  std::vector<std::string> written;
  Identity ca;
  if (exists(stem + "ca.crt") || exists(stem + "ca.key")) {
    ca = read_ca(options.dir);
  } else {
    ca = make_ca(options);
    write_identity(stem + "ca", ca, false, written);
  }
  for (const std::string& name : options.names)
    write_identity(stem + name, make_host(options, name, ca), options.force, written);
  return written;
}

std::string revoke(const std::string& dir, const std::vector<std::string>& cert_files) {
  const Identity ca = read_ca(dir);
  const CrlPtr crl(X509_CRL_new());
  const Asn1TimePtr now(ASN1_TIME_set(nullptr, std::time(nullptr) - 300));
  const Asn1TimePtr end(ASN1_TIME_set(nullptr, std::time(nullptr) + time_t{825} * 86400));
  openssl_check(
      crl != nullptr && now != nullptr && end != nullptr && X509_CRL_set_version(crl.get(), X509_CRL_VERSION_2) == 1 &&
          X509_CRL_set_issuer_name(crl.get(), X509_get_subject_name(ca.certificate.get())) == 1 &&
          X509_CRL_set1_lastUpdate(crl.get(), now.get()) == 1 && X509_CRL_set1_nextUpdate(crl.get(), end.get()) == 1,
      "make", "revocation list");
  for (const std::string& file : cert_files) {
    const X509Ptr certificate = read_certificate(file);
    RevokedPtr entry(X509_REVOKED_new());
    openssl_check(entry != nullptr &&
                      X509_REVOKED_set_serialNumber(entry.get(), X509_get_serialNumber(certificate.get())) == 1 &&
                      X509_REVOKED_set_revocationDate(entry.get(), now.get()) == 1 &&
                      X509_CRL_add0_revoked(crl.get(), entry.get()) == 1,
                  "revoke", file);
    static_cast<void>(entry.release());  // the list owns it now
  }
  openssl_check(X509_CRL_sort(crl.get()) == 1 && X509_CRL_sign(crl.get(), ca.key.get(), EVP_sha256()) > 0, "sign",
                "revocation list");
  const BioPtr text = memory_bio();
  openssl_check(PEM_write_bio_X509_CRL(text.get(), crl.get()) == 1, "write", "revocation list");
  const std::string path = dir + "/ca.crl";
  write_new_file(path, bio_text(text.get()), 0644, true);
  return path;
}

}  // namespace migrate

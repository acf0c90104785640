// OpenSSL's verify results and alerts as sentences, and names in certificates.
#include <arpa/inet.h>

#include "pageserver/tls_context.h"
#include "pageserver/verdict.h"

namespace migrate {
namespace {

std::string asn1_text(const ASN1_STRING* text) {
  const auto* data = ASN1_STRING_get0_data(text);
  return printable(std::string(data, data + ASN1_STRING_length(text)));
}

std::string ip_text(const ASN1_OCTET_STRING* ip) {
  char text[INET6_ADDRSTRLEN] = "";
  const int length = ASN1_STRING_length(ip);
  if (length != 4 && length != 16) return "?";
  ::inet_ntop(length == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(ip), text, sizeof text);
  return text;
}

/// The peer's certificate did not pass our checks.
HandshakeFailure explain_verify(const TlsConfig& config, const std::string& who, long result) {
  const std::string certificate = "the certificate of " + who;
  switch (result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return {certificate + " (or of its CA) has expired", "make a new one with `migrate keys`"};
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return {certificate + " is not valid yet", "compare the clocks of both hosts"};
    case X509_V_ERR_CERT_REVOKED:
      return {certificate + " was revoked", "make a new one with `migrate keys`"};
    case X509_V_ERR_UNABLE_TO_GET_CRL:
      return {
          certificate + " cannot be checked: " + config.crl.value_or("the revocation list") + " has no list of its CA",
          "give a list of that CA"};
    case X509_V_ERR_CRL_HAS_EXPIRED:
      return {"the revocation list " + config.crl.value_or("") + " has expired", "renew it"};
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      return {certificate + " was not signed by the CA in " + config.cacert,
              "use certificates of the same CA on both hosts"};
    default:
      return {certificate + " is refused: " + X509_verify_cert_error_string(result),
              "make a new one with `migrate keys`"};
  }
}

}  // namespace

std::string certificate_name(X509* certificate) {
  void* raw = X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr);
  const GeneralNamesPtr names(static_cast<GENERAL_NAMES*>(raw));
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_DNS) return asn1_text(name->d.dNSName);
    if (name->type == GEN_IPADD) return ip_text(name->d.iPAddress);
  }
  X509_NAME* subject = X509_get_subject_name(certificate);
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at < 0) return "without a name";
  return asn1_text(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
}

bool certificate_has_name(X509* certificate, const std::string& name) {
  if (X509_check_ip_asc(certificate, name.c_str(), 0) == 1) return true;
  return X509_check_host(certificate, name.data(), name.size(),
                         X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, nullptr) == 1;
}

HandshakeFailure explain_handshake(const TlsConfig& config, bool we_are_server, const std::string& peer,
                                   const std::string& peer_name, long verify_result, int reason) {
  const std::string who = peer_name.empty() ? peer : peer + " (" + peer_name + ")";
  const std::string ours = " refuses our certificate " + config.cert;
  const std::string key_options = config.bare ? "--tls-cert and --tls-key" : "--cert and --key";
  switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
      return explain_verify(config, who, verify_result);
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      return {who + " shows no certificate", "give it " + key_options};
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      return {who + " wants a certificate and we showed none", "give " + key_options};
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
      return {who + ours + ": its CA did not sign it", "use certificates of the same CA on both hosts"};
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
      return {who + ours + ": it has expired", "make a new one with `migrate keys`"};
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
      return {who + ours + ": it was revoked", "make a new one with `migrate keys`"};
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
      return {who + ours + ": it is not valid, or not yet", "compare the clocks of both hosts"};
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
      return {who + ours, "it must allow clientAuth and serverAuth: make one with `migrate keys`"};
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
    case SSL_R_NO_PROTOCOLS_AVAILABLE:
      return {who + " and we have no TLS version in common; we speak TLS 1.3 only", "use migrate on both sides"};
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
      return {who + " does not speak TLS", we_are_server ? "use migrate on both sides"
                                           : config.bare
                                               ? "check address and port, and that it was given --tls"
                                               : "check address and port, and that it runs without --insecure"};
    default: {
      const char* text = ERR_reason_error_string(ERR_PACK(ERR_LIB_SSL, 0, reason));
      return {"the TLS handshake with " + who + " failed: " + (text != nullptr ? text : "unknown reason"),
              "use migrate on both sides"};
    }
  }
}

}  // namespace migrate

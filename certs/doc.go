// Package certs is the internal certificate authority that ties the nodes of a
// cluster together: the CA made by cluster start, the certificate of each node,
// TLS configurations made of them, and the text of join tokens.
package certs
